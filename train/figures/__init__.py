"""The paper's experiments: grids, their runs, their pictures and the page that lays them beside the paper."""
