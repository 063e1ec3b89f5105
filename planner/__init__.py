"""Decides: what is believed, what is placed, what each request gets. No Ray, no clock, no I/O."""
