"""Hydra plugins of the suite. Hydra imports every module here at each start, so they import nothing heavy."""
