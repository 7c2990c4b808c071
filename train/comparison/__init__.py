"""Methods side by side on the same noisy labels: who takes part, their runs, the table and its page."""
