"""``tune``: a search over settings of erasing for those that resist most at each price in what is kept."""
