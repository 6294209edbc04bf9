"""An evaluation in which tools answer is measured the same way."""

from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.data.tool_use import ToolUse
from nalar.engine.sequence import Completion, SamplingParams
from nalar.evals.protocol import sample_problems, summarise
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import open_tools
from nalar.tasks.arithmetic import Arithmetic, expression_of

TOKENIZER = Tokenizer.train(
    ["calculator 12*34=408\n"] * 4, TokenizerConfig(vocab_size=266, tools=True)
)
TASK = Arithmetic()


class Caller:
    """Calls the calculator with what was asked, then answers what it was told."""

    def generate(self, requests):
        return [[self._complete(r)] * r.params.n for r in requests]

    def _complete(self, request):
        assert request.params.stop_token_ids == TOKENIZER.stop_ids
        text = TOKENIZER.decode(request.prompt_ids)
        if "<tool_output>" in text:
            output = text.partition("<tool_output>")[2].partition("<")[0]
            said = f"</think>{output}<|end|>"
        else:
            asked = text.partition("What is ")[2].partition("?")[0]
            said = f"<tool_call>calculator {asked}</tool_call>"
        ids = tuple(TOKENIZER.encode(said, allow_special=True))
        return Completion(ids, (-0.5,) * len(ids), "stop", policy_version=0)


def measured(limits):
    tools = open_tools(limits) if limits else {}
    make = (lambda problem: ToolUse(TOKENIZER, tools, limits)) if limits else None
    problems = TASK.problems("valid", 5, seed=0)
    params = SamplingParams(n=2, max_tokens=80, seed=0)
    samples = sample_problems(Caller(), TOKENIZER, TASK, problems, params, make_environment=make)
    return samples, summarise(samples, searches=False, seed=0)


def test_with_a_calculator_it_is_right_and_without_it_is_not():
    samples, result = measured(ToolsConfig(names=("calculator",)))
    assert (result.pass_at_1.mean, result.tool_calls, result.called_frac) == (1.0, 1.0, 1.0)
    assert (result.well_formed_frac, result.tool_error_frac) == (1.0, 0.0)
    (call,) = samples[0][0].parsed.calls
    assert call.arguments == expression_of(samples[0][0].problem)
    assert samples[0][0].completion.forced
    _, result = measured(None)
    assert (result.pass_at_1.mean, result.well_formed_frac, result.called_frac) == (0.0, 0.0, 1.0)
