"""Care for people who judge: limits.py caps and breaks, erasure.py stopping and erasing, own_data.py what is stored of somebody."""
