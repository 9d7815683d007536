"""What is minimised: pure functions of embeddings or logits, and GradCache around them; no model, no data.

`contrastive.info_nce` is the loss of contrastive stages and of SimCSE, and `candidate_mask` says which
document competes for which query; read these first. `mntp` hides tokens, `gradcache` gets the gradient of a
whole batch in the memory of a part. Which of them a step takes: `train.contrastive` and `train.mntp`.
"""
