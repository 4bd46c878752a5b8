"""Watch the loss scale, the logits of the classifiers and the gradient norms."""
