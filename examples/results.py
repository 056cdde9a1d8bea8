"""A custom weighting: the numbers that follow an equals sign count most."""

LOW = 0.2  # Weight of all other tokens.


def results(setting):
    """Returns a list per rationale with a weight from 0 to 1 for each of its tokens."""
    weights = []
    for record, spans in zip(setting.records, setting.spans, strict=True):
        after = [record.rationale[:end].rpartition("=")[1:] for _, end in spans]
        weights.append([1.0 if sign and text.strip().isdigit() else LOW for sign, text in after])
    return weights
