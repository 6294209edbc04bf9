"""What `--prices` of a chat and of a server say."""

from pydantic import ValidationError

from nalar.config import UserError
from nalar.server.prices_config import PriceTable


def price_table(prices: tuple[float, float, float] | None) -> PriceTable | None:
    """Of input, cached input and output, in USD for a million tokens. UserError where one is no price."""
    if prices is None:
        return None
    fresh, cached, output = prices
    try:
        return PriceTable(input_usd=fresh, cached_input_usd=cached, output_usd=output)
    except ValidationError as error:
        raise UserError(
            at="--prices",
            got=" ".join(f"{price:g}" for price in prices),
            want="USD for a million tokens of input, cached input and output, each from 0 to a million",
            hint="--prices 0.56 0.14 2.24",
        ) from error
