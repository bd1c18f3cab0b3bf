#include "tools/run_model.h"

#include <ATen/Parallel.h>
#include <torch/script.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "src/control/token.h"
#include "tools/remote_session.h"

namespace genie::tools {
namespace {

using Json = nlohmann::ordered_json;

// A failure with its exit code; run_model() prints it once.
struct Failure {
  ExitCode code;
  std::string text;
};

double since_ms(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

bool ends_with(const std::string& text, std::string_view tail) {
  return text.size() >= tail.size() && text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

// libtorch's texts bring a C++ stack and the interpreter's: the first lines say what is wrong.
std::string first_lines(const std::string& text, size_t count) {
  size_t end = 0;
  for (size_t line = 0; line < count && end != std::string::npos; ++line) {
    end = text.find('\n', end == 0 ? 0 : end + 1);
  }
  return text.substr(0, end);
}

// The scripted program's own message stands at the end of what the interpreter throws.
std::string model_error(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

void require_readable(const std::string& path, const char* what) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw Failure{kExitInput, std::string(what) + " " + path + " is a folder: name a file"};
  }
  std::ifstream file(path, std::ios::binary);
  if (!file || file.peek() == std::ifstream::traits_type::eof()) {
    throw Failure{kExitInput, std::string(what) + " " + path + " cannot be read: no such file, or it is empty"};
  }
}

torch::jit::Module load_model(const std::string& path) {
  require_readable(path, "the model");
  if (ends_with(path, ".pt2")) {
    throw Failure{kExitInput,
                  path +
                      " is a torch.export archive (.pt2): libtorch has no C++ loader for these. Save the model as "
                      "TorchScript instead: torch.jit.script(model).save(\"model.pt\"), or torch.jit.trace"};
  }
  try {
    torch::jit::Module model = torch::jit::load(path, torch::kCPU);
    model.eval();
    return model;
  } catch (const std::exception& error) {
    throw Failure{kExitInput, path +
                                  " is not a TorchScript file (a file that torch.save wrote is not one either; use "
                                  "torch.jit.script(model).save): " +
                                  first_lines(model_error(error), 1)};
  }
}

torch::Tensor draw(const RandomInput& input) {
  const std::string& dtype = input.dtype;
  if (dtype == "bool") return torch::randint(2, input.sizes, torch::kBool);
  if (dtype == "uint8") return torch::randint(10, input.sizes, torch::kUInt8);
  if (dtype == "int32") return torch::randint(10, input.sizes, torch::kInt32);
  if (dtype == "int64") return torch::randint(10, input.sizes, torch::kInt64);
  const torch::Tensor drawn = torch::randn(input.sizes, dtype == "float64" ? torch::kFloat64 : torch::kFloat32);
  if (dtype == "float16") return drawn.to(torch::kFloat16);
  if (dtype == "bfloat16") return drawn.to(torch::kBFloat16);
  return drawn;
}

std::vector<torch::IValue> read_input(const std::string& path) {
  require_readable(path, "the input");
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  torch::IValue value;
  try {
    value = torch::jit::pickle_load(bytes);
  } catch (const std::exception& error) {
    throw Failure{kExitInput,
                  "the input " + path + " is not a file that torch.save wrote: " + first_lines(model_error(error), 1)};
  }
  if (value.isTuple()) return value.toTupleRef().elements().vec();
  if (value.isList()) return value.toListRef().vec();
  return std::vector<torch::IValue>{value};
}

std::vector<torch::IValue> make_arguments(const RunOptions& options) {
  if (!options.input.empty()) return read_input(options.input);
  std::vector<torch::IValue> arguments;
  for (const std::string& text : options.random) {
    std::string why;
    const std::optional<RandomInput> input = parse_random_input(text, why);
    if (!input) throw Failure{kExitUsage, "--random: " + why};
    arguments.emplace_back(draw(*input));
  }
  return arguments;
}

// A copy of `value` with every tensor in it passed through `move`.
template <typename Move>
torch::IValue map_tensors(const torch::IValue& value, const Move& move) {
  if (value.isTensor()) return move(value.toTensor());
  if (value.isTensorList()) {
    c10::List<torch::Tensor> out;
    for (const torch::Tensor& tensor : value.toTensorVector()) out.push_back(move(tensor));
    return out;
  }
  if (value.isTuple()) {
    std::vector<torch::IValue> out;
    for (const torch::IValue& part : value.toTupleRef().elements()) out.push_back(map_tensors(part, move));
    return c10::ivalue::Tuple::create(std::move(out));
  }
  if (value.isList()) {
    c10::impl::GenericList out(value.toList().elementType());
    for (const torch::IValue& part : value.toListRef()) out.push_back(map_tensors(part, move));
    return out;
  }
  if (value.isGenericDict()) {
    const auto dict = value.toGenericDict();
    c10::impl::GenericDict out(dict.keyType(), dict.valueType());
    for (const auto& entry : dict) out.insert(entry.key(), map_tensors(entry.value(), move));
    return out;
  }
  return value;
}

struct Named {
  std::string name;
  torch::IValue value;
};

void flatten(const std::string& name, const torch::IValue& value, std::vector<Named>& out) {
  const std::string prefix = name.empty() ? "" : name + ".";
  if (value.isTuple() || value.isList()) {
    const auto parts = value.isTuple() ? value.toTupleRef().elements().vec() : value.toListRef().vec();
    for (size_t i = 0; i < parts.size(); ++i) flatten(prefix + std::to_string(i), parts[i], out);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      const torch::IValue& key = entry.key();
      flatten(prefix + (key.isString() ? key.toStringRef() : c10::str(key)), entry.value(), out);
    }
  } else {
    out.push_back({name.empty() ? "output" : name, value});
  }
}

Json describe(const Named& output) {
  Json row{{"name", output.name}};
  if (!output.value.isTensor()) {
    row["value"] = c10::str(output.value);
    return row;
  }
  const torch::Tensor tensor = output.value.toTensor().cpu().resolve_conj().resolve_neg().contiguous();
  row["shape"] = tensor.sizes().vec();
  row["dtype"] = c10::toString(tensor.scalar_type());
  char digest[17];
  std::snprintf(digest, sizeof digest, "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(tensor.const_data_ptr(), tensor.nbytes())));
  row["checksum"] = digest;
  if (tensor.numel() > 0 && !tensor.is_complex()) row["mean"] = tensor.to(torch::kFloat64).mean().item<double>();
  return row;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

struct Calls {
  torch::IValue result;  // of the last call, on the CPU
  std::vector<double> times_ms;
};

Calls call(torch::jit::Module& model, const RunOptions& options, const torch::Device& device,
           const std::vector<torch::IValue>& arguments) {
  Calls calls;
  std::vector<torch::IValue> moved;
  for (const torch::IValue& argument : arguments) {
    moved.push_back(map_tensors(argument, [&](const torch::Tensor& tensor) { return tensor.to(device); }));
  }
  for (int i = 0; i < options.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const torch::IValue result = model.forward(moved);
    calls.result = map_tensors(result, [](const torch::Tensor& tensor) { return tensor.cpu(); });
    calls.times_ms.push_back(since_ms(start));
  }
  return calls;
}

void print_text(const Json& report) {
  std::printf("model    %s on %s", report["model"].get<std::string>().c_str(),
              report["device"].get<std::string>().c_str());
  if (report.contains("cluster")) std::printf(" (%s)", report["cluster"].get<std::string>().c_str());
  std::printf("\n");
  for (const Json& row : report["outputs"]) {
    std::printf("%-8s ", row["name"].get<std::string>().c_str());
    if (row.contains("value")) {
      std::printf("%s\n", row["value"].get<std::string>().c_str());
      continue;
    }
    std::printf("%s%s checksum %s", row["dtype"].get<std::string>().c_str(), row["shape"].dump().c_str(),
                row["checksum"].get<std::string>().c_str());
    if (row.contains("mean")) std::printf(" mean %.6g", row["mean"].get<double>());
    std::printf("\n");
  }
  const Json& time = report["time_ms"];
  std::printf("time     load %.1f ms, move %.1f ms, first call %.2f ms", time["load"].get<double>(),
              time["move"].get<double>(), time["first"].get<double>());
  if (!time["median"].is_null()) std::printf(", then %.2f ms (median)", time["median"].get<double>());
  std::printf("\n");
  if (report.contains("stats")) {
    for (const auto& [name, value] : report["stats"].items()) {
      std::printf("stats    %-28s %s\n", name.c_str(), value.dump().c_str());
    }
  }
}

torch::Device parse_device(const std::string& text) {
  try {
    const torch::Device device(text);
    if (device.is_cpu() || device.is_privateuseone()) return device;
  } catch (const std::exception&) {  // libtorch's text lists device types that do not matter here
  }
  throw Failure{kExitUsage, "--device " + text + ": write remote_accelerator:N, or cpu"};
}

std::unique_ptr<RemoteSession> connect(const RunOptions& options) {
  std::string token;
  if (!options.token_file.empty()) {
    Result<std::string> read = control::read_token_file(options.token_file);
    if (!read) throw Failure{kExitUsage, "--token-file: " + std::string(read.status().text())};
    token = std::move(*read);
  }
  try {
    return RemoteSession::connect(options.cluster, token);
  } catch (const genie::Error& error) {
    const Errc code = error.status().code();
    const bool misspelt = code == Errc::kInvalidArgument || code == Errc::kConfig;
    throw Failure{misspelt ? kExitUsage : kExitUnreachable, error.what()};
  }
}

void require_served(const Session& session, const torch::Device& device) {
  const int first = session.device(0).index();
  const int last = first + session.device_count() - 1;
  const int index = device.has_index() ? device.index() : 0;
  if (index >= first && index <= last) return;
  throw Failure{kExitUsage,
                c10::str("--device ", device, ": the session serves remote_accelerator:", first, " to ", last)};
}

Json run(const RunOptions& options) {
  const torch::Device device = parse_device(options.device);
  if (options.threads > 0) at::set_num_threads(options.threads);
  torch::manual_seed(options.seed);
  const torch::NoGradGuard no_grad;
  auto start = std::chrono::steady_clock::now();
  torch::jit::Module model = load_model(options.model);
  const double load_ms = since_ms(start);
  const std::vector<torch::IValue> arguments = make_arguments(options);

  Json report{{"model", options.model}, {"device", options.device}};
  std::unique_ptr<RemoteSession> session;
  if (!device.is_cpu()) {
    session = connect(options);
    require_served(session->session(), device);
    report["cluster"] = session->uri();
    report["node"] = session->node_name();
  }
  Calls calls;
  double move_ms = 0;
  try {
    start = std::chrono::steady_clock::now();
    model.to(device);
    move_ms = since_ms(start);
    calls = call(model, options, device, arguments);
  } catch (const genie::Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Failure{kExitModel, "the model failed: " + model_error(error)};
  }
  std::vector<Named> outputs;
  flatten("", calls.result, outputs);
  report["outputs"] = Json::array();
  for (const Named& output : outputs) report["outputs"].push_back(describe(output));
  Json time{{"load", load_ms}, {"move", move_ms}, {"first", calls.times_ms.front()}, {"median", nullptr}};
  if (calls.times_ms.size() > 1) time["median"] = median({calls.times_ms.begin() + 1, calls.times_ms.end()});
  report["time_ms"] = time;
  report["threads"] = at::get_num_threads();
  if (session) report["stats"] = session->stats();
  return report;
}

}  // namespace

int run_model(const RunOptions& options) {
  try {
    const Json report = run(options);
    if (options.json) {
      std::printf("%s\n", report.dump(2).c_str());
    } else {
      print_text(report);
    }
    return kExitOk;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "genie run: %s\n", failure.text.c_str());
    return failure.code;
  } catch (const genie::Error& error) {
    std::fprintf(stderr, "genie run: %s\n", error.what());
    const Errc code = error.status().code();
    return code == Errc::kDisconnected || code == Errc::kTimedOut ? kExitUnreachable : kExitModel;
  }
}

}  // namespace genie::tools
