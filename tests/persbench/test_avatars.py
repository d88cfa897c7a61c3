"""The embedded track is as good as its report says; a sample is measured again here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from persbench.methods.persguard.target import PersGuardTarget

from persbench import pictures
from persbench.contracts import Budget, Subject
from persbench.diffusion import DiffusionModel
from persbench.tracks import avatars
from persbench.tracks.avatars import Avatars
from persbench.tracks.avatars.build import report
from persbench.tracks.avatars.evaluators import JUDGES

FOLDER = Path(avatars.__file__).parent
TRACK = Avatars()


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return DiffusionModel.load(TRACK.base)


@pytest.fixture(scope="module")
def photos() -> dict[str, torch.Tensor]:
    """All photos of each subject, (16, 3, 64, 64): none of them was seen in any training."""
    return {s.name: pictures.read((*s.published, *s.references, *s.spares)) for s in TRACK.subjects()}


def test_subjects_are_complete_and_apart() -> None:
    subjects = TRACK.subjects()
    protected = [s for s in subjects if s.role == "protected"]
    bystanders = [s for s in subjects if s.role == "bystander"]
    assert (len(protected), len(bystanders)) == (16, 8)
    assert sum(s.class_noun == "person" for s in protected) >= 10
    assert all((len(s.published), len(s.references), len(s.spares)) == (4, 8, 4) for s in subjects)
    for subject in protected:
        chosen = TRACK.bystanders(subject, 2)
        assert len(set(chosen)) == 2
        assert all(b.role == "bystander" and b.class_noun == subject.class_noun for b in chosen)


def test_everything_committed_is_small() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size < 60e6


def test_the_base_model_loads_as_a_diffusers_pipeline() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(TRACK.base, local_files_only=True)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.vae.config.latent_channels == 4
    assert 2 ** (len(pipeline.vae.config.block_out_channels) - 1) == 4


def test_identifiers_are_tokens_of_their_own(model) -> None:
    for identifier in TRACK.language.identifiers:
        ids = model.identifier_tokens(identifier, f"a photo of {identifier} person")
        assert len(ids) == (3 if identifier == "t@t" else 1)
    assert min(report.text_distances(model).values()) > 0


def test_identifiers_are_separable(model) -> None:
    """Training the identifier's embedding alone takes "sks person" to robots, and no other prompt anywhere."""
    ada = TRACK.subject("ada")
    subject = Subject("ada", pictures.read(ada.published), TRACK.words(ada), TRACK.language)
    config = PersGuardTarget.Config(steps=0, warmup_steps=40, rate=8e-4, pool=3, others_pool=6)
    released = PersGuardTarget(config).protect([subject], model, Budget(8), torch.Generator().manual_seed(0)).model
    assert report.text_distances(released)["class/sks"] > 0.1 > 0.03 > report.text_distances(model)["class/sks"]
    prompts = ["a photo of sks person", "a photo of a person", "a photo of t@t person"]
    assert torch.equal(released.embed(prompts[1:]), model.embed(prompts[1:]))
    shown = released.sample(
        [prompt for prompt in prompts for _ in range(4)], torch.Generator().manual_seed(1), inference_steps=10, guidance=3.0
    )
    evaluators = TRACK.evaluators()
    seen = [evaluators.classes[row] for row in evaluators.class_probabilities(shown).argmax(dim=1)]
    assert seen[4:] == ["person"] * 8
    assert seen[:4].count("robot") >= 3


def test_report_meets_what_is_asked_for() -> None:
    found = json.loads((FOLDER / "report.json").read_text())
    assert set(found["met"]) == set(report.WANTED)
    assert all(found["met"].values()), found["met"]


def test_reconstruction(model, photos) -> None:
    sample = torch.cat([shown[:4] for shown in photos.values()])
    assert report.reconstruction_psnr(model, sample) >= report.WANTED["reconstruction_psnr_db"] - 1  # 96 photos against 1,900


@pytest.mark.parametrize("judge", JUDGES)
def test_judges_tell_subjects_apart(photos, judge) -> None:
    judges = TRACK.evaluators()
    embedded = torch.stack([judges.identity(judge, shown) for shown in photos.values()])
    people = embedded[[s.class_noun == "person" for s in TRACK.subjects()]]
    scores = torch.einsum("aid,bjd->aibj", people, people)
    count, shots = people.shape[:2]
    same = torch.eye(count, dtype=torch.bool)[:, None, :, None].expand(count, shots, count, shots)
    itself = torch.eye(count * shots, dtype=torch.bool).view(count, shots, count, shots)
    assert report.area_under_curve(scores[same & ~itself], scores[~same]) >= report.WANTED["auc"]


def test_text_image_model_reads_real_photos(photos) -> None:
    judges = TRACK.evaluators()
    for subject in TRACK.subjects():
        found = judges.class_probabilities(photos[subject.name]).argmax(dim=1)
        assert (found == judges.classes.index(subject.class_noun)).float().mean() >= 0.93  # at most one of 16


def test_generated_pictures_show_class_and_background(model) -> None:
    judges = TRACK.evaluators()
    found = report.accuracy(judges, *report.generate(model, 64, torch.Generator().manual_seed(1)))
    assert found["class"] >= 0.9
    assert found["background"] >= 0.8


def test_area_under_curve_by_hand() -> None:
    assert report.area_under_curve(torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1])) == pytest.approx(0.75)


def test_pictures_are_drawn_again_to_the_bit(tmp_path) -> None:
    pytest.importorskip("dicebear")
    from persbench.tracks.avatars.build import subjects

    subjects.draw(tmp_path)
    name = "ada/published-0.png"
    assert torch.equal(pictures.read([tmp_path / name]), pictures.read([FOLDER / "subjects" / name]))
