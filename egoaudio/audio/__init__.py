"""Samples -> clips -> denoised clips -> features."""
