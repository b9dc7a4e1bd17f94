"""`moe4 tune`: move a release's scales so that the whole model answers more like its source.

GPTQ makes each matrix's error small, one after another; what counts is the model's answers. The codes stay,
and with them the format, the size and the speed. Scales alone are trained end to end as in EfficientQAT's
second phase (Chen et al., arXiv:2407.11062), against the source's probabilities instead of the text's tokens.
"""
