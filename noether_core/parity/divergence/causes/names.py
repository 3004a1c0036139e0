"""List the causes that can be named. A cause is what a person would mend, not where it shows."""

from __future__ import annotations

CAUSES: dict[str, str] = {
    # data
    "batch-content": "the batches hold other examples",
    "batch-order": "the same examples come in another order or split",
    "batch-partial": "the last partial batch is kept, dropped or padded by one side",
    "batch-preprocessing": "the inputs are scaled, shifted or laid out otherwise",
    "batch-dtype": "the inputs are kept in a lower precision",
    "label-smoothing": "labels are smoothed otherwise",
    # parameters
    "initial-weights": "the trainings start from other weights",
    "weight-layout": "a weight is transposed, flipped or permuted",
    "weight-not-loaded": "some weights were not carried over",
    # forward
    "activation-function": "another activation function, or another approximation of it",
    "attention-mask": "another attention mask",
    "attention-scale": "attention scores are scaled otherwise",
    "bias-missing": "a bias is left out or added twice",
    "dropout": "dropout is on in one, or draws other masks",
    "forward-other": "a layer computes something else",
    "layer-order": "layers or a residual stand in another order",
    "low-precision": "values are rounded to bfloat16, float16 or TF32",
    "norm-axes": "a norm is taken over other axes or groups",
    "norm-epsilon": "a norm has another epsilon, or has it elsewhere",
    "norm-mode": "a norm uses running statistics in one and the batch's in the other",
    "padding": "another padding, stride or cropping",
    "pooling": "another pooling",
    "flatten-order": "axes are flattened in another order",
    # loss
    "loss-factor": "the loss has another constant factor",
    "loss-function": "another loss, or other arguments of it",
    "loss-mask": "other elements are left out of the loss",
    "loss-reduction": "the loss is a sum, or a mean over something else",
    # backward
    "accumulation": "gradients are summed over accumulation steps in one and averaged in the other",
    "gradient-factor": "gradients have another constant factor",
    "gradient-stopped": "a gradient is stopped, or a parameter is frozen",
    "gradient-other": "the backward pass computes something else",
    # clipping
    "clip-by-array": "gradients are clipped array by array, not by their global norm",
    "clip-by-value": "gradients are clipped by value, not by norm",
    "clip-epsilon": "the norm in the clip's factor has an epsilon in one",
    "clip-missing": "gradients are clipped in one alone",
    "clip-order": "gradients are clipped at another place, such as before averaging",
    "clip-threshold": "another threshold of clipping",
    # optimizer
    "beta": "another decay rate of a moment",
    "bias-correction": "moments are corrected for their start in one alone, or by another count",
    "decay-coupled": "weight decay goes into the gradient in one, and beside it in the other",
    "decay-mask": "weight decay holds for other parameters",
    "decay-value": "another strength of weight decay, or one that the rate does not scale",
    "epsilon-place": "epsilon stands inside the root in one, outside in the other",
    "epsilon-value": "another epsilon",
    "frozen-parameter": "a parameter is updated in one alone",
    "learning-rate": "another learning rate",
    "learning-rate-groups": "some parameters have another learning rate",
    "momentum-convention": "the momentum's buffer is kept by another convention (damped, or scaled by the rate)",
    "momentum-value": "another momentum",
    "nesterov": "Nesterov's momentum in one alone",
    "optimizer-other": "another optimizer, or a variant of it",
    "schedule-offset": "the schedule is a step early or late",
    "schedule-shape": "another schedule",
    "second-moment": "the second moment is kept otherwise (centred, its maximum, its start)",
    "state-reset": "optimizer state is lost or kept where it should not be",
    "update-sign": "updates have the other sign",
    # buffers
    "buffer-momentum": "running statistics are averaged by another momentum",
    "buffer-variance": "running variances are biased in one, unbiased in the other",
    "buffer-other": "running statistics are kept otherwise",
    "weight-averaging": "averaged weights are kept otherwise",
}
"""Each cause's id, and what it says."""
