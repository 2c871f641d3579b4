"""What one of several devices holds when every matrix is divided among them (tensor parallel)."""

from __future__ import annotations

from dataclasses import replace

from estimator.network import Attention, Block, Layer, Network, Recurrence, Stack, Weight

__all__ = ["REPLICATED", "kept_heads", "shard_network", "widest_split"]

REPLICATED = (
    "norms, biases, routers, position tables, latent caches, heads of keys and values beyond one per device, and the "
    "residual stream are whole on every device; communication takes no time"
)


def shard_network(network: Network, num_devices: int) -> Network:
    """The share of one device: every product, table of tokens, head and state divided by `num_devices`, rounded up.

    `REPLICATED` says what is not divided. Key-value heads are: a device holds at least one, and latent caches whole.

    Source: Shoeybi et al.: Megatron-LM, arXiv:1909.08053, section 3.
    """
    if num_devices == 1:
        return network
    stacks = tuple(_shard_stack(stack, network, num_devices) for stack in network.stacks)
    return replace(network, stacks=stacks)


def widest_split(network: Network) -> int:
    """The largest power of two of devices among which attention heads can be divided; 1024 without attention."""
    heads = [b.attention.num_attention_heads for s in network.stacks for b in s.blocks if b.attention is not None]
    return 1 << (min(heads, default=1024).bit_length() - 1)


def kept_heads(attention: Attention) -> int | None:
    """Heads of keys and values that a token leaves in the cache; None for a latent cache, which has no heads."""
    width = attention.key_head_dim + attention.value_head_dim
    heads, rest = divmod(attention.cached_elements, width)
    if rest or (heads and attention.num_attention_heads % heads):
        return None
    return heads


def _shard_stack(stack: Stack, network: Network, num_devices: int) -> Stack:
    def shard(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        return tuple(_shard_block(block, stack, network, num_devices) for block in blocks)

    layers = tuple(Layer(blocks=shard(layer.blocks), owns_weights=layer.owns_weights) for layer in stack.layers)
    return replace(stack, layers=layers, before=shard(stack.before), after=shard(stack.after))


def _shard_block(block: Block, stack: Stack, network: Network, num_devices: int) -> Block:
    weights = tuple(_shard_weight(weight, block, network, num_devices) for weight in block.weights)
    attention = block.attention
    if attention is not None:
        weights += _repeated_heads(attention, stack.hidden_size, num_devices)
        attention = _shard_attention(attention, num_devices)
    whole = min(block.live_width, 2 * stack.hidden_size)
    return replace(
        block,
        weights=weights,
        attention=attention,
        recurrence=None if block.recurrence is None else _shard_state(block.recurrence, num_devices),
        live_width=whole + -(-(block.live_width - whole) // num_devices),
    )


def _shard_weight(weight: Weight, block: Block, network: Network, num_devices: int) -> Weight:
    is_router = block.part == "experts" and weight.role == "linear" and not weight.quantized
    is_token_table = weight.role == "embedding" and weight.shape[0] == network.vocab_size
    is_matrix = weight.role == "linear" and not is_router
    if not (is_matrix or is_token_table or (network.has_only_weights and len(weight.shape) > 1)):
        return weight
    return replace(weight, shape=(-(-weight.shape[0] // num_devices), *weight.shape[1:]))


def _shard_attention(attention: Attention, num_devices: int) -> Attention:
    kept, width = kept_heads(attention), attention.key_head_dim + attention.value_head_dim
    return replace(
        attention,
        num_attention_heads=-(-attention.num_attention_heads // num_devices),
        cached_elements=attention.cached_elements if kept is None else -(-kept // num_devices) * width,
    )


def _repeated_heads(attention: Attention, hidden_size: int, num_devices: int) -> tuple[Weight, ...]:
    """The rows of key and value matrices that a device holds beyond its share, so that its heads are whole."""
    kept, width = kept_heads(attention), attention.key_head_dim + attention.value_head_dim
    if not kept or attention.is_cross:
        return ()
    rows = -(-kept // num_devices) * width - -(-kept * width // num_devices)
    return (Weight(name="repeated_key_values", shape=(rows, hidden_size)),) if rows else ()


def _shard_state(state: Recurrence, num_devices: int) -> Recurrence:
    return replace(
        state,
        state_elements=-(-state.state_elements // num_devices),
        fp32_elements=-(-state.fp32_elements // num_devices),
        token_flops=-(-state.token_flops // num_devices),
        prompt_flops=-(-state.prompt_flops // num_devices),
        chunks=None
        if state.chunks is None
        else replace(
            state.chunks,
            token_flops=-(-state.chunks.token_flops // num_devices),
            pair_flops=-(-state.chunks.pair_flops // num_devices),
            boundary_flops=-(-state.chunks.boundary_flops // num_devices),
        ),
    )
