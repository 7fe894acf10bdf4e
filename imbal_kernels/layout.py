"""The layout of a detector's head, which a kernel reads as it is: (images, anchors, C, positions)."""

from torch import Tensor


def head_of(input: Tensor) -> Tensor | None:
    """(images, anchors, C, positions) over the memory of logits (images, *positions, anchors, C) or (images,
    *positions, C) that a detector's head wrote as (images, anchors * C, *positions); None for any other layout."""
    if input.dim() < 3 or input.is_contiguous():
        return None
    places = tuple(range(1, input.dim() - 2))
    with_anchors = input.permute(0, -2, -1, *places) if places else input[:, None].transpose(2, 3)
    for view in (with_anchors, input.permute(0, -1, *places, -2)[:, None]):
        if view.is_contiguous():
            return view.flatten(3)
    return None


def by_anchor(target: Tensor, head: Tensor) -> Tensor:
    """What has a value a row, (images, *positions, anchors), in the order of a head's memory."""
    images, anchors, _, positions = head.shape
    return target.reshape(images, positions, anchors).transpose(1, 2)


def rows_by_anchor(rows: Tensor | None, head: Tensor) -> Tensor | None:
    """A 2-d factor with its rows in the order of a head's memory."""
    images, anchors, _, positions = head.shape
    if rows is None or rows.shape[0] == 1:
        return rows
    return rows.reshape(images, positions, anchors, -1).transpose(1, 2).reshape(rows.shape).contiguous()
