"""The mix with learned heads: trained on fewer and on more replies, trained anew between rounds, and used to choose the best of several."""
