"""Tests of PrimeSVT; a package, so that its folders may share what they measure with."""
