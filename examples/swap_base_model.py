"""The same prompts, seed, memories and loop on any base models, side by side: the first new frame of every chunk."""

import typer
from PIL import Image, ImageDraw, ImageOps

from streaming import Key, PromptSchedule, TextOpening, assemble, make_long_term, make_short_term, open_model, stream

PROMPTS = ("a big pink star bounces on a meadow", "a red ball rolls over the snow", "a blue cube spins in a desert")


def main(models: list[str], chunks: int = 5, short_term: str = "cam+inject", long_term: str = "apm") -> None:
    """Writes swap.png: a row for each prompt, in it a picture for each chunk of each model."""
    sheet = Image.new("RGB", (130 * chunks * len(models), 144 * len(PROMPTS)), "white")
    for column, model in enumerate(map(open_model, models)):
        parts = assemble(model, short=make_short_term(short_term, model), long=make_long_term(long_term, model))
        for row, prompt in enumerate(PROMPTS):
            ImageDraw.Draw(sheet).text((130 * chunks * column, 144 * row), f"{model.name}: {prompt}", fill="black")
            for chunk in stream(parts, PromptSchedule.fixed(prompt), TextOpening(), key=Key(0), chunks=chunks):
                tile = Image.fromarray((255 * chunk.frames[0, 0]).byte().permute(1, 2, 0).numpy())
                sheet.paste(ImageOps.contain(tile, (128, 128)), (130 * (chunks * column + chunk.index), 144 * row + 14))
    sheet.save("swap.png", optimize=True)


if __name__ == "__main__":
    typer.run(main)
