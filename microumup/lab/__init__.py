"""Instruments: they import the book and measure it; the book never imports them."""
