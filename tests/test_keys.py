"""Claims about keys: new fields and networks leave those of existing recipes alone."""

import pytest

from sparseirm.recipe import Recipe

KEYS = [
    (Recipe(method="erm"), "54fb827ee8c85730"),
    (Recipe(method="erm", settings="paper"), "38172399da15a07a"),
    (Recipe(method="erm", settings="released", data="full_colored_mnist"), "e4275c4899ac4eba"),
    (Recipe(method="oracle", data="colored_mnist"), "6f5e8627f8aa2fcd"),
    (Recipe(method="erm", width=64, steps=10, batch_size=64), "8c5e6bca839a0d5f"),
    (Recipe(method="erm", optimizer="sgd", lr=0.1, momentum=0.5), "ded2e4b13bea9d0f"),
    (Recipe(method="sparseerm", settings="paper"), "b4791037397e90ee"),
    (
        Recipe(method="sparseerm", sparsifier="rigl", density=0.1, sparsifier_options={"decide_at": 0.75}),
        "a687b8f7cfd23404",
    ),
    (
        Recipe(method="sparseerm", budget=500, optimizer="sgd", sparsifier_options={"score_eps": 1.0}),
        "09cf49b58b6a878e",
    ),
]


@pytest.mark.parametrize(("recipe", "key"), KEYS)
def test_keys_are_those_of_the_first_results(recipe: Recipe, key: str) -> None:
    assert recipe.key == key


def test_a_recipe_written_out_before_an_option_came_keeps_its_meaning_and_key() -> None:
    younger = Recipe(sparsifier_options={"score_eps": 0.0}).resolved()
    older = Recipe.from_json(younger.to_json())
    assert "score_eps" not in older.sparsifier_options
    assert older.resolved() == younger and older.key == younger.key != Recipe().key
    assert Recipe(sparsifier_options={"score_lr": 0.1}).resolved().sparsifier_options["score_eps"] == 3.0


def test_a_width_written_out_is_the_default_width() -> None:
    assert Recipe(width=390).key == Recipe().key
