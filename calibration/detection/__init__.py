"""Detection: labels of a COCO file, how a detector's outputs are read, average precision."""
