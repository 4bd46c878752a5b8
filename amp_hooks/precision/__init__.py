"""Leave a precision that does not work, and rehearse FP16 on a CPU."""
