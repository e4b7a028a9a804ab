// pass: canonicalize
weight @w : f32[4, 3] role=param = random(1)

graph(%x : f32[B, 4]) {
  %w = weight @w
  %h = matmul(%x, %w)
  %y = relu(%h)
  return %y
}
