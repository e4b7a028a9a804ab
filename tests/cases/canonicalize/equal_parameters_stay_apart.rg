// pass: canonicalize
// about: two parameters that happen to be equal are never tied
weight @w : f32[4, 4] role=param = splat 0.5
weight @v : f32[4, 4] role=param = splat 0.5

graph(%x : f32[B, 4]) {
  %w = weight @w
  %v = weight @v
  %h = matmul(%x, %w)
  %y = matmul(%h, %v)
  return %y
}
