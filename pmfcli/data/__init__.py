"""Ratings come in here: data sets, downloads, file layouts, ids and scales, splits."""
