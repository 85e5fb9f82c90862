"""Passwords and certificates of a service: made by ``rfss secure``, used by ``rfss serve`` and by deployments."""
