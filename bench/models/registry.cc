#include "bench/models/registry.h"

#include <algorithm>
#include <array>
#include <utility>

#include "bench/models/bert.h"
#include "bench/models/dlrm.h"
#include "bench/models/gpt2.h"
#include "bench/models/lstm.h"
#include "bench/models/moe.h"
#include "bench/models/resnet.h"
#include "bench/models/unet.h"
#include "bench/models/vit.h"
#include "bench/models/vqa.h"

namespace genie::models {
namespace {

template <class Module, size_t... I>
torch::Tensor call(Module& module, const Tensors& inputs, std::index_sequence<I...>) {
  TORCH_CHECK(inputs.size() == sizeof...(I), "the model takes ", sizeof...(I), " inputs, not ", inputs.size());
  return module->forward(inputs[I]...);
}

template <size_t kInputs, class Module>
Model model(Module module) {
  module->eval();
  return {module.ptr(),
          [module](const Tensors& in) mutable { return call(module, in, std::make_index_sequence<kInputs>()); }};
}

template <class T>
T by_scale(Scale scale, T real, T reduced) {
  return scale == Scale::kReal ? real : reduced;
}

torch::Tensor tokens(int64_t vocabulary, at::IntArrayRef sizes) {
  return torch::randint(0, vocabulary, sizes, torch::kLong);
}

Gpt2Config gpt2_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.vocabulary = 97, .context = 32, .width = 48, .heads = 4, .layers = 2};
}
Model gpt2(Scale scale) { return model<1>(Gpt2(gpt2_config(scale))); }
Tensors gpt2_inputs(Scale scale) { return {tokens(gpt2_config(scale).vocabulary, {1, by_scale(scale, 64, 12)})}; }

BertConfig bert_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.vocabulary = 97, .context = 32, .width = 48, .heads = 4, .layers = 2};
}
Model bert(Scale scale) { return model<3>(Bert(bert_config(scale))); }
Tensors bert_inputs(Scale scale) {
  const int64_t length = by_scale(scale, 128, 12);
  auto present = torch::ones({1, length}, torch::kBool);
  present.narrow(1, length - length / 4, length / 4).fill_(false);
  return {tokens(bert_config(scale).vocabulary, {1, length}), tokens(2, {1, length}), present};
}

Model resnet50(Scale scale) {
  auto config = ResNetConfig::resnet50();
  if (scale == Scale::kReduced) config = {.blocks = {1, 2, 1, 1}, .bottlenecks = true, .classes = 10, .width = 8};
  return model<1>(ResNet(config));
}
Tensors image(Scale scale) {
  const int64_t side = by_scale(scale, 224, 32);
  return {torch::randn({1, 3, side, side})};
}

VitConfig vit_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.image = 32, .patch = 8, .width = 48, .heads = 4, .layers = 2, .classes = 10};
}
Model vit(Scale scale) { return model<1>(Vit(vit_config(scale))); }

constexpr int64_t kManyBags = 128;

DlrmConfig dlrm_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.tables = 4, .rows = 100, .width = 8, .numbers = 5, .bottom = {16}, .top = {16}};
}
Model dlrm(Scale scale) { return model<3>(Dlrm(dlrm_config(scale))); }
// Bags of four entries.
template <int64_t Bags>
Tensors dlrm_inputs(Scale scale) {
  const DlrmConfig config = dlrm_config(scale);
  constexpr int64_t kEntries = 4;
  return {torch::randn({Bags, config.numbers}), tokens(config.rows, {config.tables, Bags * kEntries}),
          torch::arange(0, Bags * kEntries, kEntries).expand({config.tables, Bags}).contiguous()};
}

VqaConfig vqa_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {
      .image = vit_config(scale), .vocabulary = 97, .context = 16, .text_layers = 1, .fusion_layers = 2, .answers = 10};
}
Model vqa(Scale scale) { return model<2>(Vqa(vqa_config(scale))); }
Tensors vqa_inputs(Scale scale) {
  return {image(scale)[0], tokens(vqa_config(scale).vocabulary, {1, by_scale(scale, 32, 7)})};
}

constexpr int64_t kSentences = 4;

LstmConfig lstm_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.vocabulary = 97, .width = 24, .layers = 2};
}
Model lstm(Scale scale) { return model<1>(LstmModel(lstm_config(scale))); }
Tensors lstm_inputs(Scale scale) {
  return {tokens(lstm_config(scale).vocabulary, {by_scale(scale, 35, 5), kSentences})};
}

UnetConfig unet_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.channels = 16, .time_width = 32, .text_width = 24, .heads = 2, .groups = 4};
}
Model unet(Scale scale) { return model<3>(Unet(unet_config(scale))); }
// The latent of an image of 256 pixels on a side, a text of 77 tokens.
Tensors unet_inputs(Scale scale) {
  const UnetConfig config = unet_config(scale);
  const int64_t side = by_scale(scale, 32, 8);
  return {torch::randn({1, config.channels, side, side}), tokens(1000, {1}),
          torch::randn({1, by_scale(scale, 77, 7), config.text_width})};
}

MoeConfig moe_config(Scale scale) {
  if (scale == Scale::kReal) return {};
  return {.vocabulary = 97, .width = 48, .heads = 4, .layers = 2, .experts = 4};
}
Model moe(Scale scale) { return model<1>(Moe(moe_config(scale))); }
Tensors moe_inputs(Scale scale) { return {tokens(moe_config(scale).vocabulary, {1, by_scale(scale, 64, 12)})}; }

constexpr std::array kEntries{
    Entry{"gpt2", gpt2, gpt2_inputs},       Entry{"bert", bert, bert_inputs},
    Entry{"resnet50", resnet50, image},     Entry{"vit_b16", vit, image},
    Entry{"dlrm", dlrm, dlrm_inputs<1>},    Entry{"dlrm_128", dlrm, dlrm_inputs<kManyBags>, kManyBags},
    Entry{"vqa", vqa, vqa_inputs},          Entry{"lstm", lstm, lstm_inputs, kSentences},
    Entry{"unet_block", unet, unet_inputs}, Entry{"moe", moe, moe_inputs, 1, /*data_dependent=*/true},
};

}  // namespace

std::span<const Entry> entries() { return kEntries; }

const Entry* find(std::string_view name) {
  const auto found = std::ranges::find(kEntries, name, &Entry::name);
  return found == kEntries.end() ? nullptr : &*found;
}

}  // namespace genie::models
