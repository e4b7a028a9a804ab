// pass: canonicalize
graph(%x : f32[B, S, 4]) {
  %a = transpose(%x) {perm = [0, 2, 1]}
  %b = transpose(%a) {perm = [0, 2, 1]}
  %y = relu(%b)
  return %y
}

// ----
module "model"
symbol B
symbol S

graph(%x : f32[B, S, 4]) {
  %y = relu(%x) : f32[B, S, 4]
  return %y
}
