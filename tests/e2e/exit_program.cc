// Ends in the way that its first argument names, with a session on the second one, while something of the device is still there.
// Nothing here is freed on purpose: what the process destroys at its end, and in which order, is what is tested.
#include <genie/genie.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

// Made before anything of torch or Genie, so destroyed after their statics.
struct Oldest {
  std::vector<torch::Tensor> tensors;
  std::optional<genie::Session> session;
  std::unique_ptr<genie::Capture> capture;
};
Oldest& oldest() {
  static Oldest instance;
  return instance;
}

thread_local std::vector<torch::Tensor> of_thread;

torch::Tensor pending(const torch::Device& device) { return (torch::ones({64, 64}, device) * 2).exp(); }

struct Net : torch::nn::Module {
  Net() : layer(register_module("layer", torch::nn::Linear(8, 8))) {}
  torch::nn::Linear layer;
};

int tensor_outlives_session(const std::string& uri) {
  genie::Session session = genie::Session::connect(uri);
  oldest().tensors = {pending(session.device(0)), torch::ones({1 << 20}).to(session.device(0))};
  return oldest().tensors[0].sum().item<float>() > 0 ? 0 : 1;
}

int session_outlives_tensor(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  static torch::Tensor younger = pending(oldest().session->device(0));
  return younger.sum().item<float>() > 0 ? 0 : 1;
}

int work_pending(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  for (int i = 0; i < 100; ++i) oldest().tensors.push_back(pending(oldest().session->device(0)));
  return 0;
}

int work_running(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  torch::Tensor x = torch::full({512, 512}, 1e-3, oldest().session->device(0));
  for (int i = 0; i < 50; ++i) x = x.mm(x);
  oldest().tensors.push_back(x);
  std::thread([x] {
    try {
      genie::materialize(x);
    } catch (const genie::Error&) {  // the session has ended before
    }
  }).detach();
  return 0;
}

int of_a_thread(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  of_thread.push_back(pending(oldest().session->device(0)));
  std::promise<void> ready;
  std::thread([&] {
    of_thread.push_back(pending(oldest().session->device(0)));
    ready.set_value();
    std::this_thread::sleep_for(std::chrono::hours(1));
  }).detach();
  ready.get_future().wait();
  return 0;
}

int exit_from_a_thread(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  oldest().tensors.push_back(pending(oldest().session->device(0)));
  std::thread([] {
    oldest().tensors.push_back(pending(oldest().session->device(0)));
    std::exit(0);
  }).join();
  return 1;
}

int quick(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  oldest().tensors.push_back(pending(oldest().session->device(0)));
  std::quick_exit(0);
}

int open_capture(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  oldest().capture = std::make_unique<genie::Capture>(oldest().session->device(0));
  const Net net;
  oldest().tensors.push_back(net.layer->weight.mm(torch::ones({8, 8})));
  return 0;
}

int after_backward(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  static auto net = std::make_shared<Net>();
  net->to(oldest().session->device(0));
  auto loss = net->layer->forward(torch::ones({2, 8}, oldest().session->device(0))).sum();
  loss.backward();
  oldest().tensors = {loss, net->layer->weight.grad()};
  return 0;
}

int two_sessions(const std::string& uri) {
  oldest().session.emplace(genie::Session::connect(uri));
  static genie::Session second = genie::Session::connect("embedded:");
  oldest().tensors = {pending(second.device(0)), pending(oldest().session->device(0))};
  second.close();
  return 0;
}

const std::map<std::string_view, int (*)(const std::string&)> kWays = {
    {"tensor_outlives_session", tensor_outlives_session},
    {"session_outlives_tensor", session_outlives_tensor},
    {"work_pending", work_pending},
    {"work_running", work_running},
    {"of_a_thread", of_a_thread},
    {"exit_from_a_thread", exit_from_a_thread},
    {"quick", quick},
    {"open_capture", open_capture},
    {"after_backward", after_backward},
    {"two_sessions", two_sessions},
};

}  // namespace

int main(int count, char** arguments) {
  oldest();
  const auto way = count == 3 ? kWays.find(arguments[1]) : kWays.end();
  if (way == kWays.end()) {
    std::fputs("usage: exit_program WAY URI\n", stderr);
    return 2;
  }
  return way->second(arguments[2]);
}
