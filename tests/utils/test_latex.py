from vip2clip_hf.utils.latex import escape_latex


def test_escape_latex():
    assert escape_latex("a_b & 5 %") == r"a\_b \& 5 \%"
    assert escape_latex("\\~^{}$#") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\$\#"
