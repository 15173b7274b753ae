"""The suite itself is tested: the library broken in one place at a time, and every time a test must notice.

`make mutants` copies the package and its tests to a temporary folder, replaces one text there, runs a few tests that
should see it, and prints which did. Before that the same tests must pass on the copy as it is. It exits with 1 if a
mutant survives, if its text is no longer in the file exactly once, or if the tests could not run at all.

To add one: what would be a plausible mistake, the file, the text as it stands, what to write instead, and the tests
that are to see it, as few and as fast as will do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A mistake: in ``file``, ``instead`` stands for ``text``; ``tests`` are to see it."""

    name: str
    file: str
    text: str
    instead: str
    tests: str


MUTANTS = [
    # The two programs
    Mutant(
        "the KL counts twice",
        "model/programs.py",
        "poutine.scale(scale=self._beta)",
        "poutine.scale(scale=2 * self._beta)",
        "test_truth.py::test_elbo_without_chance",
    ),
    Mutant(
        "β in the model alone",
        "model/programs.py",
        "with self._plate(size, total), self._kl_weight():\n            return",
        "with self._plate(size, total):\n            return",
        "test_model.py::test_beta_weighs_the_kl_and_nothing_else",
    ),
    Mutant(
        "a batch stands for its share of the data, not for all",
        "model/programs.py",
        "poutine.scale(scale=total / size)",
        "poutine.scale(scale=size / total)",
        "test_truth.py::test_exact_posterior_stock_losses",
    ),
    Mutant(
        "z is detached",
        "model/programs.py",
        "self._decoded(z, c)",
        "self._decoded(z.detach(), c)",
        "test_truth.py::test_gradient_without_chance",
    ),
    Mutant(
        "unseen pixels count",
        "model/masking.py",
        "p = _only_seen(p, mask)",
        "_only_seen(p, mask)",
        "test_model.py::test_the_masked_likelihood_is_the_sum_over_seen_pixels",
    ),
    Mutant(
        "the encoder is shown what is unseen",
        "model/masking.py",
        "x = filled(x, mask)\n    return torch.cat",
        "return torch.cat",
        "test_model.py::test_unseen_values_reach_neither_loss_nor_gradients",
    ),
    # Importance weights
    Mutant(
        "weights without log q",
        "model/vae.py",
        "else p.log_prob(z) - q.log_prob(z)",
        "else p.log_prob(z)",
        "test_truth.py::test_exact_posterior_log_weights",
    ),
    Mutant(
        "p and q change places in the weights",
        "model/vae.py",
        "else p.log_prob(z) - q.log_prob(z)",
        "else q.log_prob(z) - p.log_prob(z)",
        "test_truth.py::test_exact_posterior_log_weights",
    ),
    Mutant(
        "β in an evaluation",
        "model/vae.py",
        "yield z, ratio + likelihood.log_prob(seen)",
        "yield z, self.beta * ratio + likelihood.log_prob(seen)",
        "test_evaluation.py::test_beta_is_never_applied",
    ),
    Mutant(
        "one draw for all samples",
        "model/vae.py",
        "z = draw((min(chunk, samples - done),))",
        "z = draw((1,)).expand(min(chunk, samples - done), *[-1] * (1 + len(q.batch_shape)))",
        "test_truth.py::test_importance_weights_are_unbiased",
    ),
    Mutant(
        "the mean of the logarithms",
        "model/vae.py",
        "total = torch.logaddexp(total, log_w.double().logsumexp(0))",
        "total = torch.logaddexp(total, log_w.double().mean(0) + math.log(len(log_w)))",
        "test_truth.py::test_log_prob_is_log_mean_exp_of_the_weights",
    ),
    Mutant(
        "log-mean-exp without the mean",
        "model/vae.py",
        "(total - math.log(samples))",
        "(total - math.log(1))",
        "test_truth.py::test_exact_posterior_log_prob_needs_one_sample",
    ),
    # Objectives
    Mutant(
        "the KL is added",
        "objectives/by_hand.py",
        "- beta * kl_gaussian(",
        "+ beta * kl_gaussian(",
        "test_truth.py::test_elbo_without_chance",
    ),
    Mutant(
        "no ½ log 2π",
        "objectives/by_hand.py",
        "0.5 * torch.log(2 * math.pi * variance)",
        "0.5 * torch.log(variance)",
        "test_truth.py::test_elbo_without_chance",
    ),
    Mutant(
        "the mean over pixels",
        "objectives/by_hand.py",
        "len(p.event_shape)).sum(-1)",
        "len(p.event_shape)).mean(-1)",
        "test_truth.py::test_elbo_without_chance",
    ),
    Mutant(
        "the mean over latent features",
        "objectives/by_hand.py",
        "squares - 0.5).sum(-1)",
        "squares - 0.5).mean(-1)",
        "test_truth.py::test_elbo_without_chance",
    ),
    Mutant(
        "KL(p ‖ q) for KL(q ‖ p)",
        "objectives/by_hand.py",
        "kl = kl_divergence(q, p)",
        "kl = kl_divergence(p, q)",
        "test_truth.py::test_elbo_without_chance",
    ),
    Mutant(
        "β in the terms that are reported",
        "objectives/by_hand.py",
        "return reconstruction, kl.expand_as(reconstruction)",
        "return reconstruction, vae.beta * kl.expand_as(reconstruction)",
        "test_objectives.py::test_terms_ignore_beta",
    ),
    Mutant(
        "IWAE without − log k",
        "objectives/bounds.py",
        "log_w.logsumexp(0) - math.log(len(log_w))",
        "log_w.logsumexp(0)",
        "test_bounds.py::test_at_the_exact_posterior_every_bound_is_the_evidence",
    ),
    Mutant(
        "log-mean-exp over the rows",
        "objectives/bounds.py",
        "log_w.logsumexp(0) - math.log(len(log_w))",
        "log_w.logsumexp(-1) - math.log(log_w.shape[-1])",
        "test_bounds.py::test_the_bound_is_the_one_written_as_a_loop",
    ),
    Mutant(
        "the size of the data inside the exponent",
        "objectives/bounds.py",
        "_summed(tempered(site, scale), dims)",
        "_summed(site['log_prob'], dims)",
        "test_bounds.py::test_the_bound_is_the_one_written_as_a_loop",
    ),
    Mutant(
        "DReG with w̃ for w̃²: sticking the landing at k > 1",
        "objectives/bounds.py",
        "return w - beta * w * (1 - w)",
        "return w",
        "test_bounds.py::test_dreg_has_the_mean_of_iwaes_gradient",
    ),
    Mutant(
        "DReG forgets β",
        "objectives/bounds.py",
        "return w - beta * w * (1 - w)",
        "return w.square()",
        "test_bounds.py::test_dreg_has_the_mean_of_iwaes_gradient",
    ),
    Mutant(
        "α for 1 − α",
        "objectives/bounds.py",
        "order = 1 - self.alpha",
        "order = self.alpha",
        "test_bounds.py::test_the_orders_of_the_renyi_bound",
    ),
    Mutant(
        "free bits are a ceiling",
        "objectives/constrained.py",
        "return kl.clamp(min=self.nats)",
        "return kl.clamp(max=self.nats)",
        "test_constrained.py::test_free_bits_by_hand",
    ),
    Mutant(
        "free bits for every row, before the mean",
        "objectives/constrained.py",
        "kl.reshape(-1, kl.shape[-1]).mean(0) for kl in kls",
        "self.constrain(kl).reshape(-1, kl.shape[-1]).mean(0) for kl in kls",
        "test_constrained.py::test_free_bits_by_hand",
    ),
    Mutant(
        "the KL of a batch counts once",
        "objectives/constrained.py",
        "beta * rows * self.constrain(mean).sum()",
        "beta * self.constrain(mean).sum()",
        "test_constrained.py::test_without_bits_it_is_the_elbo",
    ),
    # Parts
    Mutant(
        "σ² for σ in the encoder",
        "encoders/gaussian.py",
        "return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp()).to_event(1)",
        "return dist.Normal(loc, log_variance.clamp(*self.clamp).exp()).to_event(1)",
        "test_truth.py::test_exact_posterior_log_weights",
    ),
    Mutant(
        "no to_event in the encoder",
        "encoders/gaussian.py",
        "return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp()).to_event(1)",
        "return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp())",
        "test_truth.py::test_exact_posterior_log_weights",
    ),
    Mutant(
        "the encoder ignores y",
        "encoders/base.py",
        "self.network((x - self.shift) / self.scale, c)",
        "self.network((x - self.shift) / self.scale, None if c is None else torch.zeros_like(c))",
        "test_truth.py::test_exact_posterior_log_weights",
    ),
    Mutant(
        "x as it is for x standardised",
        "encoders/base.py",
        "self.network((x - self.shift) / self.scale, c)",
        "self.network(x, c)",
        "test_contracts.py::test_the_encoders_standardise_x",
    ),
    Mutant(
        "the prior ignores y",
        "priors.py",
        "loc, log_variance = self.network(None, c).chunk(2, -1)",
        "loc, log_variance = self.network(None, torch.zeros_like(c)).chunk(2, -1)",
        "test_contracts.py::test_the_context_matters",
    ),
    Mutant(
        "σ² for σ in the prior",
        "priors.py",
        "return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp()).to_event(1)",
        "return dist.Normal(loc, log_variance.clamp(*self.clamp).exp()).to_event(1)",
        "test_contracts.py::test_the_learned_prior_has_log_variances",
    ),
    Mutant(
        "the first rows for pseudo-inputs",
        "priors.py",
        "torch.randperm(len(x))[: self.components]",
        "torch.arange(len(x))[: self.components]",
        "test_priors.py::test_pseudo_inputs_start_from_distinct_rows_and_once",
    ),
    Mutant(
        "a probability for a logit",
        "likelihoods/unit.py",
        "return family(logits=self.raw(z, c))",
        "return family(logits=self.raw(z, c).sigmoid())",
        "test_contracts.py::test_bernoulli_and_binomial_take_logits",
    ),
    Mutant(
        "the likelihood ignores y",
        "likelihoods/base.py",
        "raw = self.network(z, c)",
        "raw = self.network(z, None if c is None else torch.zeros_like(c))",
        "test_truth.py::test_exact_posterior_log_weights",
    ),
    # Densities
    Mutant(
        "no ½ log 2π in a cross-entropy",
        "distributions/divergences.py",
        "(0.5 * math.log(2 * math.pi) + base",
        "(base",
        "test_densities.py::test_the_divergence_of_a_correlated_gaussian_from_a_diagonal_one",
    ),
    Mutant(
        "a chain without its second density",
        "distributions/chain.py",
        "return self.first.log_prob(z) + second.log_prob(w)",
        "return self.first.log_prob(z)",
        "test_densities.py::test_a_chain_integrates_to_one",
    ),
    Mutant(
        "draws of a mixture that do not move with its weights",
        "distributions/mixtures.py",
        "log_weights = self.mixture_distribution.logits.unsqueeze(-1) + before",
        "log_weights = self.mixture_distribution.logits.detach().unsqueeze(-1) + before",
        "test_densities.py::test_a_draw_of_a_mixture_moves_so_that_the_density_follows",
    ),
    Mutant(
        "a mixture whose squares are multiplied out in single precision",
        "distributions/mixtures.py",
        "z, loc, scale = z.double(), loc.double(), scale.double()",
        "z, loc, scale = z.float(), loc.float(), scale.float()",
        "test_densities.py::test_components_that_all_rows_share_are_compared_by_products",
    ),
    Mutant(
        "what z tells of y is held against its own error alone, and not the prior's",
        "evaluation/labels.py",
        "* math.hypot(error, prior_error)",
        "* error",
        "test_labels.py::test_the_priors_draws_have_an_error_too",
    ),
    Mutant(
        "an error that takes what labels differ by for noise",
        "evaluation/labels.py",
        '"leakage": (told.mean().item() + entropy, _error_within(told, y)),',
        '"leakage": mean_and_error(told + entropy),',
        "test_labels.py::test_what_two_labels_have_in_common_is_no_noise",
    ),
    Mutant(
        "samples that are less diverse for a judge that errs",
        "evaluation/quality.py",
        "of = (y_test, y_test) if conditional else (fake.labels, real.labels)",
        "of = (y_test, y_test) if conditional else (fake.labels, y_test)",
        "test_quality.py::test_a_judge_that_errs_makes_no_model_less_diverse",
    ),
    Mutant(
        "dimensions that are used whatever the prior's scale",
        "evaluation/diagnostics.py",
        "moving = self.variance > _ACTIVE * torch.where(scale.isfinite() & (scale > 0), scale, 1.0)",
        "moving = self.variance > _ACTIVE",
        "test_diagnostics.py::test_what_is_used_goes_by_the_priors_scale",
    ),
    Mutant(
        "an audit that calls wrong what a few draws say",
        "evaluation/pairs.py",
        "if not all(row.ok for row in tested):",
        "if False:",
        "test_audit.py::test_a_skewed_gradient_is_no_error",
    ),
    # Labels that are missing, training, evaluation
    Mutant(
        "labels are sampled, not summed out",
        "semisupervised.py",
        "torch.where(y >= 0, known.to(log_q), log_q.exp())",
        "torch.where(y >= 0, known.to(log_q), torch.zeros_like(log_q).scatter(0, log_q.exp().T.multinomial(1).T, 1.0))",
        "test_semisupervised.py::test_all_labels_missing_is_pyros_enumeration",
    ),
    Mutant(
        "a partial batch weighs as much as a full one",
        "epochs.py",
        '"loss": sums["loss"] * batches.batch_size / rows',
        '"loss": sums["loss"] / batches.steps',
        "test_training.py::test_history_and_parameters_are_those_of_a_loop_by_hand",
    ),
    Mutant(
        "an average of averages in validation",
        "epochs.py",
        "torch.stack(elbo_terms(vae, x, y, 1, *mask), -1) for",
        "torch.stack(elbo_terms(vae, x, y, 1, *mask), -1).mean(0, keepdim=True) for",
        "test_training.py::test_validation_means_count_the_rows_there_are",
    ),
    Mutant(
        "an evaluation in training mode",
        "evaluation/measuring.py",
        "with evaluating(vae), seeded",
        "with seeded",
        "test_evaluation.py::test_leaves_everything_as_it_was",
    ),
    Mutant(
        "the standard error of a sum for that of a mean",
        "evaluation/likelihood.py",
        "(1 / ess - 1 / S)",
        "(S / ess - 1)",
        "test_log_likelihood.py::test_sums_by_hand",
    ),
    Mutant(
        "weights before a point of the curve count twice",
        "evaluation/likelihood.py",
        "                start = upto\n",
        "",
        "test_log_likelihood.py::test_sums_by_hand",
    ),
    Mutant(
        "a code is scored by its own row too",
        "evaluation/aggregate.py",
        "            log_q[at, column[at]] = -math.inf\n",
        "",
        "test_labels.py::test_leave_one_out_by_hand",
    ),
    Mutant(
        "a comparison that is not paired",
        "evaluation/comparison.py",
        "other.values[term] - first.values[term])",
        "other.values[term] - first.values[term].mean())",
        "test_log_likelihood.py::test_comparison_is_paired",
    ),
    Mutant(
        "the band of a likelihood is of what rows differ by anyway",
        "plots/likelihood.py",
        "gain.std(1)",
        "values.std(1)",
        "test_plot_likelihood.py::test_the_band_is_twice_the_error_of_what_is_still_to_come",
    ),
    Mutant(
        "pixels of 0 are taken for certain where logarithms are put together",
        "capture/rewriting.py",
        "new(aten.relu.default, (logits,))",
        "new(aten.relu.default, (new(aten.mul.Tensor, (logits, value)),))",
        "test_rewriting.py::test_extreme_logits",
    ),
    Mutant(
        "every move of the annealing is accepted",
        "evaluation/annealing.py",
        "accepted = _accept(rate)",
        "accepted = _accept(torch.ones_like(rate))",
        "test_annealing.py::test_moves_leave_their_target_as_it_is",
    ),
    Mutant(
        "temperatures of the annealing from the first on",
        "evaluation/annealing.py",
        "log_w += (following - t) * place.u.double()",
        "log_w += (following - ladder[1]) * place.u.double()",
        "test_annealing.py::test_from_the_exact_posterior_every_weight_is_the_evidence",
    ),
    Mutant(
        "the upper bound with the sign of the lower one",
        "evaluation/annealing.py",
        "upper=None if z is None else -log_mean[1]",
        "upper=None if z is None else log_mean[1]",
        "test_annealing.py::test_from_the_exact_posterior_every_weight_is_the_evidence",
    ),
    Mutant(
        "ties count as below",
        "evaluation/calibration.py",
        "return below + (torch.rand(ties.shape, dtype=torch.float64, device=z.device) * (ties + 1)).long()",
        "return below + ties",
        "test_calibration.py::test_equal_draws_are_in_random_order",
    ),
    # Labels, streams, spheres
    Mutant(
        "each label is tried by its own encoder",
        "evaluation/labels.py",
        '"proposal": _under_any(vae, labels)',
        '"proposal": "encoder"',
        "test_labels.py::test_an_encoder_that_looks_at_y_does_not_make_the_model_use_it",
    ),
    Mutant(
        "a classifier of codes is judged by the rows it learned from",
        "evaluation/leakage.py",
        "known, codes = belongs[~judged], z[~judged]",
        "known, codes = belongs[judged], z[judged]",
        "test_labels.py::test_the_linear_classifier_learns_from_other_rows",
    ),
    Mutant(
        "a density less a probability",
        "evaluation/comparison.py",
        'if not (_of_the_same_pixels(first, other) and (term == "kl" or _of_a_kind(first, other))):',
        "if False:",
        "test_log_likelihood.py::test_probabilities_and_densities_have_no_difference",
    ),
    Mutant(
        "evaluations of other pixels compared",
        "evaluation/comparison.py",
        "unknown or one.pixels == other.pixels",
        "True",
        "test_measurement_faults.py::test_halves_that_are_other_pixels_have_no_difference",
    ),
    Mutant(
        "draws in turn begin with the first component",
        "evaluation/labels.py",
        "torch.randint(k, (*self.batch_shape, 1), device=z.device)",
        "torch.zeros((*self.batch_shape, 1), dtype=torch.long, device=z.device)",
        "test_labels.py::test_draws_in_turn_are_draws_of_the_mixture",
    ),
    Mutant(
        "measurements share the seed's own stream",
        "evaluation/measuring.py",
        "seed ^ zlib.crc32(what.encode())",
        "seed",
        "test_log_likelihood.py::test_data_drawn_with_the_same_seed_are_no_better_known",
    ),
    Mutant(
        "a Vamp of labels takes the same row for all",
        "encoders/base.py",
        "return self.from_raw(self.raw(x, c)[rows])",
        "return self.from_raw(self.raw(x, c)[rows * 0])",
        "test_priors.py::test_labels_that_are_alike_share_the_passes_of_a_vamp",
    ),
    Mutant(
        "a sphere in a chain goes unseen",
        "distributions/chain.py",
        "if isinstance(support, _Beside):",
        "if isinstance(support, _Beside) and start < 0:",
        "test_composition_faults.py::test_a_misfit_says_the_way_out",
    ),
    Mutant(
        "two parameters share the memory of their gradients",
        "capture/recording.py",
        "    separate(graph, [leaves[i] for i in reached])\n",
        "",
        "test_static.py::test_gradients_are_laid_out_as_their_parameters_and_share_no_memory",
    ),
    Mutant(
        "the gradients of one shape stay for the next",
        "capture/static.py",
        "        self.optim.zero_grad()\n",
        "",
        "test_static.py::test_a_gradient_of_one_shape_moves_nothing_in_a_step_of_another",
    ),
    Mutant(
        "a bad step is counted from the last reading",
        "capture/ledger.py",
        "good, self._before = counted - self._before, counted",
        "good, self._before = counted, 0",
        "test_static.py::test_a_bad_step_is_named_after_others_were_caught",
    ),
    Mutant(
        "steps on the device go on where the program was changed",
        "capture/svi.py",
        "self._check_next = not self._stays or long_ago or self._checked[1] != self._program.numbers()",
        "self._check_next = not self._stays or long_ago",
        "test_device.py::test_what_a_callback_changes_is_found_when_training_goes_on",
    ),
    Mutant(
        "a view of a product is memory of its own",
        "capture/simplify.py",
        "elif node.target is aten._unsafe_view.default:",
        "elif False:",
        "test_capture.py::test_what_is_written_to_is_made_anew_for_every_draw",
    ),
    Mutant(
        "an audit where no gradient is recorded",
        "evaluation/audit.py",
        '    check_gradients("audit")\n',
        "",
        "test_measurement_faults.py::test_a_number_is_the_same_wherever_gradients_are_recorded",
    ),
    Mutant(
        "a density that autocast has in half precision",
        "distributions/precision.py",
        "log_prob = uncast(dist.LowRankMultivariateNormal.log_prob)",
        "log_prob = dist.LowRankMultivariateNormal.log_prob",
        "test_distributions.py::test_densities_stay_in_single_precision_under_autocast",
    ),
    Mutant(
        "a gradient that autocast has in half precision",
        "capture/loss.py",
        "        if self.is_mixed:\n            # Pyro",
        "        if False:\n            # Pyro",
        "test_capture.py::test_in_mixed_precision_graph_and_stock_step_round_alike",
    ),
    Mutant(
        "a binomial whose saddle point forgets n",
        "distributions/gammas.py",
        "0.5 * (n / (2 * math.pi * a * b)).log()",
        "0.5 * (1 / (2 * math.pi * a * b)).log()",
        "test_gammas.py::test_a_binomial",
    ),
    Mutant(
        "a mask in the units of a pixel",
        "encoders/masked.py",
        "mask = mask * encoders[0].scale + encoders[0].shift",
        "mask = mask * 1.0",
        "test_missing.py::test_a_network_is_told_by_zeros_and_ones_whatever_the_range_of_a_pixel",
    ),
    Mutant(
        "a mixture of levels that starts narrower than the data",
        "likelihoods/levels.py",
        "(math.sqrt(3) * deviation).log()",
        "deviation.log()",
        "test_likelihoods.py::test_a_mixture_starts_as_wide_as_the_data",
    ),
    Mutant(
        "moments that are restored by place and not by name",
        "state.py",
        "{places[n]: values for n, values in state.items()}",
        "dict(enumerate(state.values()))",
        "test_training.py::test_what_joined_in_another_order_resumes_bit_identically",
    ),
    Mutant(
        "a layer that was exchanged leaves its moments to the new one",
        "state.py",
        "    held = [*_loose(vae, steps).items(), *vae.named_parameters()]\n",
        "    held = [(k.partition('$$$')[2] or k, v) for k, v in steps.optim.leaves.items()]\n",
        "test_training.py::test_a_layer_that_a_callback_exchanges_is_trained_resumed_and_the_old_one_forgotten",
    ),
    Mutant(
        "the best model of another β than training goes on with",
        "training.py",
        'last_beta = history.info["beta"] if beta_at is None else beta_at(epochs)',
        "last_beta = 1.0",
        "test_training.py::test_without_a_beta_the_best_is_chosen_by_the_one_that_goes_on",
    ),
    Mutant(
        "two batch norms are merged into one",
        "capture/simplify.py",
        'return [value for value in (given["running_mean"], given["running_var"]) if isinstance(value, Node)]',
        "return []",
        "test_capture.py::test_batch_norm_that_is_run_twice_counts_twice",
    ),
    Mutant(
        "one weight that is everything, and a k̂ that is good",
        "evaluation/pareto.py",
        "torch.where(nothing, math.inf, k)",
        "k",
        "test_measurement_faults.py::test_one_weight_that_is_everything_is_never_good",
    ),
    Mutant(
        "degrees of freedom of labels that no row has",
        "evaluation/labels.py",
        "min(self.rows - seen, PRIOR_DRAWS - 1)",
        "min(self.rows - len(self.labels), PRIOR_DRAWS - 1)",
        "test_measurement_faults.py::test_labels_without_rows_are_no_degrees_of_freedom",
    ),
    Mutant(
        "a flow whose networks are cast to half precision",
        "distributions/adapt.py",
        "    @uncast\n    def log_prob(self, value: Tensor) -> Tensor:\n        drawn, log_prob",
        "    def log_prob(self, value: Tensor) -> Tensor:\n        drawn, log_prob",
        "test_distributions.py::test_flows_stay_in_single_precision_under_autocast",
    ),
    Mutant(
        "a refused step that leaves running statistics spoilt",
        "capture/svi.py",
        "first_bad_site(self.model, self.guide, args, kwargs)\n        finally:\n            state.restore()\n",
        "first_bad_site(self.model, self.guide, args, kwargs)\n        finally:\n            pass\n",
        "test_capture.py::test_a_step_that_is_refused_leaves_running_statistics_as_they_were",
    ),
]


def broken(mutant: Mutant) -> str:
    """The source with the mistake in it.

    Raises:
        LookupError: if the text is not in the file exactly once.
    """
    source = (ROOT / "ppl_vae" / mutant.file).read_text(encoding="utf-8")
    if source.count(mutant.text) != 1:
        raise LookupError(f"{mutant.name}: {source.count(mutant.text)} times in {mutant.file}: {mutant.text!r}")
    return source.replace(mutant.text, mutant.instead)


def run(tests: list[str], mutant: Mutant | None = None) -> subprocess.CompletedProcess[str]:
    """Pytest on a copy of the library, with the mistake in it or as it is, until the first test that fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tree in ("ppl_vae", "tests"):
            shutil.copytree(ROOT / tree, folder / tree, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("conftest.py", "setup.cfg"):
            shutil.copy(ROOT / file, folder)
        if mutant is not None:
            (folder / "ppl_vae" / mutant.file).write_text(broken(mutant), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", *(f"tests/{t}" for t in tests)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def killed_by(mutant: Mutant) -> tuple[bool, str]:
    """Whether the tests noticed, and which, or why not."""
    found = run([mutant.tests], mutant)
    failed = re.search(r"^FAILED tests/(.+?)(?: - .*)?$", found.stdout, re.MULTILINE)
    if found.returncode == 1 and failed:
        return True, failed[1]
    return False, f"ERROR: {found.stdout[-2000:]}{found.stderr[-2000:]}" if found.returncode else "SURVIVED"


def main() -> int:
    """Try every mutant, as many at a time as there are processors; return how many were not killed."""
    started = time.perf_counter()
    for mutant in MUTANTS:
        broken(mutant)
    whole = run(sorted({mutant.tests for mutant in MUTANTS}))
    if whole.returncode:
        print(whole.stdout, whole.stderr, "the tests fail on the library as it is")
        return len(MUTANTS)
    alive = 0
    print(f"{'mutant':56s} killed by")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, (killed, told) in zip(MUTANTS, pool.map(killed_by, MUTANTS), strict=True):
            alive += not killed
            print(f"{mutant.name:56s} {told}", flush=True)
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(MUTANTS) - alive} of {len(MUTANTS)} killed, {minutes:.1f} minutes")
    return alive


if __name__ == "__main__":
    sys.exit(main() > 0)
