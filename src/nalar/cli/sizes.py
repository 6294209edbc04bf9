"""A model's sizes as a table for people."""

from rich import box
from rich.table import Table

from nalar.evals import units
from nalar.plan.sizes import Sizes

_PARTS = {
    "embedding": "embedding",
    "attention": "attention",
    "bias": "biases of attention",
    "dense": "dense feed-forward",
    "router": "routers",
    "balance": "balance biases of routers",
    "shared": "shared experts",
    "routed": "routed experts",
    "norm": "norms",
    "head": "output head",
}


def sizes_table(sizes: Sizes) -> Table:
    """Parameters by part; parts that the model lacks are left out."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("", "parameters", "share", "a token passes"):
        table.add_column(name, justify="right" if name else "left")
    every = sizes.params.model_dump()
    used = every | {"routed": sizes.routed_active_params}
    for part, label in _PARTS.items():
        if every[part]:
            share = units.percent(every[part] / sizes.total_params)
            table.add_row(label, f"{every[part]:,}", share, f"{used[part]:,}")
    table.add_section()
    table.add_row("all", f"{sizes.total_params:,}", "", f"{sizes.active_params:,}", style="bold")
    words = sizes.params.embedding + sizes.params.head
    without = f"{sizes.total_params - words:,}", "", f"{sizes.active_params_without_embeddings:,}"
    table.add_row("without embedding and head", *without)
    if sizes.mtp_params:
        table.add_row("beside it: multi-token prediction", f"{sizes.mtp_params:,}", "", "")
    return table


def sizes_lines(sizes: Sizes) -> list[str]:
    """The figures that are no parameters."""
    context = sizes.context_tokens
    forward, trained, more = (
        units.scaled(flops, "FLOP")
        for flops in (
            sizes.forward_flops_per_token,
            sizes.flops_per_token,
            sizes.mtp_flops_per_token,
        )
    )
    held = [f"{units.scaled(n, 'B')} in {dtype}" for dtype, n in sizes.weight_bytes.items()]
    kept = sizes.kv_bytes_per_token["bfloat16"]
    lines = [
        f"operations    {forward} a token forward, {trained} with its backward pass: "
        f"the mean of a sequence of {context:,} tokens",
        "weights       " + ", ".join(held),
        f"cache         {units.scaled(kept, 'B')} a token in bfloat16, "
        f"{units.scaled(kept * context, 'B')} for {context:,} tokens",
    ]
    if sizes.mtp_params:
        lines.append(f"prediction    {more} more a trained token, where its blocks are trained too")
    return lines
