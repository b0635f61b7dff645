"""Few steps in place of many: the teacher's way against diffusers', exact resume, that it learns, and its folder."""

import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

from stages.errors import DataError, ModelError
from stages.ldm import diffusion, lora
from stages.ldm.few_steps import build_task, train_few_steps
from stages.ldm.model import load_ldm
from stages.params import resolve
from stages.store import model_card, verify_model
from stages.training.loop import train
from stages.training.state import averaged_weights
from tests.ldm.test_train import run, weights
from tests.ldm.toy import TOY, toy_params
from tests.training.toy import batch_of

SCHEDULE = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}


def few_params(prediction="v_prediction", **few):
    settings = {"lora_rank": 4, **few}
    settings["train"] = {"batch_size": 4, "steps": 4, "workers": 0, "warmup_steps": 2, "valid_every": 2,
                         "valid_batches": 1, "checkpoint_every": 3, **few.get("train", {})}  # fmt: skip
    return resolve({**TOY, "ldm": {**TOY["ldm"], "prediction": prediction}, "few_steps": settings})


@pytest.fixture(scope="module")
def pipelines(project, tmp_path_factory):
    """Folders of the toy pipeline after two steps, one for each prediction."""
    root = tmp_path_factory.mktemp("pipelines")
    steps = {**toy_params().ldm.train.model_dump(), "steps": 2}
    for prediction in ("epsilon", "v_prediction"):
        params = toy_params(mixup="none", train=steps, prediction=prediction)
        run(project, params, root / "checkpoints" / prediction, root / prediction)
    return root


def task_of(project, pipelines, params):
    return build_task(params, project.latents, project.shards, pipelines / params.ldm.prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("place", [0, 3, 5])
def test_the_teacher_goes_as_dpm_solver_of_diffusers(project, pipelines, monkeypatch, prediction, place):
    """Two substeps from each of the student's times, the last of which ends in clean latents."""
    task = task_of(project, pipelines, few_params(prediction))
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(2, *task.model.params.latent_shape, generator=generator) for _ in range(2))

    def predict(x, t):
        return 0.3 * other + 0.5 * x.tanh() + 1e-3 * t.view(-1, 1, 1, 1)

    monkeypatch.setattr(task, "_guided", lambda x, t, _condition: predict(x, t))
    now, then = (task.times[at].expand(2) for at in (place, place + 1))
    middle = ((now + then) / 2).round().long()
    found = task._arrival(x, torch.stack([now, middle, then], 1), torch.zeros(2, 64))
    scheduler = DPMSolverMultistepScheduler(
        1000, **SCHEDULE, prediction_type=prediction, final_sigmas_type="zero", timestep_spacing="linspace"
    )
    visited = [int(now[0]), int(middle[0])] + ([int(then[0])] if then[0] else [])
    scheduler.set_timesteps(timesteps=visited)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(predict(x, t.expand(2)), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_a_step_of_the_student_is_ddims(project, pipelines):
    task = task_of(project, pipelines, few_params())
    x, predicted = (torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    scheduler = DDIMScheduler(1000, **SCHEDULE, prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(10)  # 900, 800, ...
    now, then = torch.tensor([500]), torch.tensor([400])
    signal, sigma = diffusion.levels(task.alpha_bar, now, x)
    kept, drawn = task._ddim(x, now, then)
    found = kept * x + drawn * task._clean(predicted, x, signal, sigma)
    torch.testing.assert_close(found, scheduler.step(predicted, 500, x).prev_sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_untrained_student_errs_by_what_guidance_and_substeps_add(project, pipelines, prediction):
    """Without updates, guidance and substeps it is its teacher."""

    def error(**few):
        task = task_of(project, pipelines, few_params(prediction, **few))
        batch = batch_of(task.valid_dataset, [(0, i) for i in range(6)])
        with torch.no_grad():
            return float(task.validate(batch, torch.Generator().manual_seed(0))["loss"])

    assert error(guidance=1.0, substeps=1) == pytest.approx(0, abs=1e-8)
    assert error(guidance=3.0, substeps=1) > 100 * max(error(guidance=1.0, substeps=1), 1e-9)
    assert error(guidance=3.0, substeps=1, guidance_interval=[0.0, 1e-4]) == pytest.approx(0, abs=1e-8)
    assert error(guidance=1.0, substeps=3) > 1e-8


def test_rows_are_guided_by_their_own_times(project, pipelines):
    task = task_of(project, pipelines, few_params(guidance=3.0, guidance_interval=[0.0, 0.5]))
    generator = torch.Generator().manual_seed(0)
    x, condition = torch.randn(2, *task.model.params.latent_shape, generator=generator), torch.randn(2, 64)
    t = torch.tensor([400, 600])
    told, untold = task.model(x, t, condition), task.model(x, t, task.model.null.expand(2, -1))
    wanted = torch.stack([untold[0] + 3 * (told[0] - untold[0]), told[1]])
    torch.testing.assert_close(task._guided(x, t, condition), wanted, rtol=1e-4, atol=1e-5)


def test_resumed_training_gives_the_same_bits(project, pipelines, tmp_path):
    def trained(name, *lengths):
        for steps in lengths:
            task = task_of(project, pipelines, few_params(train={"steps": steps}))
            history = train(task, checkpoints=tmp_path / name, identity={"a": "b"})
        return weights(task), history

    whole, parts = trained("whole", 4), trained("parts", 2, 4)
    assert parts[1].resumed_at == 2
    assert torch.equal(whole[0], parts[0])
    assert not torch.equal(whole[0], trained("shorter", 3)[0])


def test_it_learns_what_guidance_does_and_only_in_the_updates(project, pipelines, tmp_path):
    params = few_params(guidance=4.0, lora_rank=8, train={"steps": 60, "learning_rate": 5e-3, "valid_every": 60})
    task = task_of(project, pipelines, params)
    batch = batch_of(task.valid_dataset, [(0, i) for i in range(6)])
    before = {name: p.clone() for name, p in task.model.named_parameters() if not p.requires_grad}

    def error():
        with torch.no_grad():
            return float(task.validate(batch, torch.Generator().manual_seed(0))["loss"])

    first = error()
    train(task, checkpoints=tmp_path, identity={})
    with averaged_weights(task.state):
        assert error() < 0.75 * first
    assert all(torch.equal(p, before[name]) for name, p in task.model.named_parameters() if name in before)


def test_the_folder_is_the_pipeline_with_updates_beside(project, pipelines, tmp_path, typed):
    """By the command; its estimate writes nothing, and updates that do not fit are refused."""
    (tmp_path / "params.yaml").write_text("preset: tiny\n")
    source = pipelines / "epsilon"
    options = ["train", "few-steps", "--latents", project.latents, "--shards", project.shards, "--ldm", source,
               "-S", "few_steps.train={steps: 3, warmup_steps: 1, workers: 0}"]  # fmt: skip
    code, _, err = typed(tmp_path, *options, "--out", "made", "--estimate")
    assert (code, (tmp_path / "made").exists()) == (0, False), err
    code, _, err = typed(tmp_path, *options, "--out", "made")
    assert code == 0, err
    made = tmp_path / "made"
    assert verify_model(made) == []
    card = model_card(made, "ldm")
    assert card["few_steps"]["params"]["steps"] == 6
    assert card["few_steps"]["steps"] == 3
    assert {key: card[key] for key in ("steps", "params_digest")} == {
        key: model_card(source)[key] for key in ("steps", "params_digest")
    }
    for file in source.rglob("*.safetensors"):
        assert (made / file.relative_to(source)).read_bytes() == file.read_bytes()
    updates = load_file(made / lora.FEW_STEPS)
    assert {value.dtype for value in updates.values()} == {torch.float16}
    assert any(value.abs().sum() > 0 for name, value in updates.items() if name.endswith(".up"))

    save_file(updates | {"conv_in.down": torch.zeros(1, 3)}, tmp_path / "wrong.safetensors")
    for name, said in (("wrong", "does not fit its UNet"), ("none", "There is no .*none")):
        with pytest.raises(ModelError, match=said):
            lora.update(load_ldm(made), tmp_path / f"{name}.safetensors")


def test_updates_of_a_file_do_what_the_trained_ones_did(project, pipelines, tmp_path):
    model = load_ldm(pipelines / "epsilon")
    lora.add(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter).mul(0.1).half())
    lora.save(model, tmp_path / lora.FEW_STEPS)
    plain = load_ldm(pipelines / "epsilon")
    x, t, condition = torch.randn(2, *model.params.latent_shape), torch.tensor([3, 700]), torch.randn(2, 64)
    with torch.no_grad():
        before = plain(x, t, condition)
        lora.update(plain, tmp_path / lora.FEW_STEPS)
        torch.testing.assert_close(plain(x, t, condition), model(x, t, condition), rtol=1e-3, atol=1e-4)
        assert float((plain(x, t, condition) - before).abs().max()) > 0.01


def test_latents_of_another_pipeline_are_refused(project, pipelines, tmp_path):
    shutil.copytree(project.latents, tmp_path / "latents")
    index = tmp_path / "latents" / "index.json"
    index.write_text(index.read_text().replace('"shards": "', '"shards": "0'))
    with pytest.raises(DataError, match="made of other shards, or for another pipeline"):
        train_few_steps(
            few_params(), tmp_path / "latents", project.shards, pipelines / "epsilon", tmp_path / "out", tmp_path / "c"
        )
