"""Modules for vision-language models, on fastfuse's operations; every one runs in plain PyTorch as well."""

from fastfuse.nn.attention_pooler import AttentionPooler
from fastfuse.nn.context_kv import ContextKV, KVCache
from fastfuse.nn.core import set_attention
from fastfuse.nn.cross_attention import CrossAttention
from fastfuse.nn.gated_cross_attention import GatedCrossAttention
from fastfuse.nn.joint_attention import JointAttention
from fastfuse.nn.relation_learning import RelationLearning, RelationOutput
from fastfuse.nn.shared_representation import SharedRepresentation

__all__ = [
    "AttentionPooler",
    "ContextKV",
    "CrossAttention",
    "GatedCrossAttention",
    "JointAttention",
    "KVCache",
    "RelationLearning",
    "RelationOutput",
    "SharedRepresentation",
    "set_attention",
]
