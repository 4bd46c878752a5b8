"""Is this environment one that training with amp_hooks works in?"""
