"""What the papers on learning with noisy labels derive on paper: no data, no net, no training."""
