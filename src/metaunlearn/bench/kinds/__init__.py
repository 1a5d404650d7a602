"""One file for each kind of cell; its function ``make`` fills a folder. The code behind it is part of every key."""
