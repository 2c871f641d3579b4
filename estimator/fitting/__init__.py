"""The largest request, and the smallest device, that fit."""
