"""Training: from scratch (`pretrain`), and of a head on a trained model (`finetune`)."""
