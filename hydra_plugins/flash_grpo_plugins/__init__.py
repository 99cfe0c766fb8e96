"""Register the suite's plugins with Hydra, which imports every module here at each start: they import nothing heavy."""
