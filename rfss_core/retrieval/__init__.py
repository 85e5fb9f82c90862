"""Retrieval of labelled slices: the support set, its FAISS index, and the strategies that search it."""

from rfss_core.retrieval.index import FlatIndex, VectorIndex
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.retriever import Retriever
from rfss_core.retrieval.support import SupportSet

__all__ = ["FlatIndex", "Neighbours", "Retriever", "SupportSet", "VectorIndex"]
