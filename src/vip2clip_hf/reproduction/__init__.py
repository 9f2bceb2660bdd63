"""Run the tables and figures of the paper."""
