"""Run the classifier layers in FP32 and bound their logits."""
