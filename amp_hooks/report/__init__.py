"""Explain a run from the files it left: ``python -m amp_hooks.report WORK_DIR``.

Reading (``read*.py``) makes plain data of a work_dir (``history.py``); everything after
it is pure functions over that data: what happened (``findings.py``), how it ended
(``status.py``), who is to blame (``suspects.py``), what to change (``advice.py``), and
the two pages (``terminal.py``, ``html_page.py``).
"""
