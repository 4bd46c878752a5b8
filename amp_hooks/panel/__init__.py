"""Scalars, charts, histograms and cards for the visualization backends."""
