"""How fast the training core is and how much memory it takes, beside the trainers that people use now."""
