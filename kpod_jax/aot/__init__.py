"""Compiles steps for devices that are not there: their memory and costs."""
