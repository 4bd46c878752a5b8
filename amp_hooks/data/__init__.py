"""Boxes, bad batches and suspect images; COCO annotation files."""
