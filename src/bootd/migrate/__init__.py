"""From other boot servers to bootd: what `bootd import` does."""
