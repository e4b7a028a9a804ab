// about: weights of every kind print as they were written
module "weights"
source @w : f32[4, 6] = random(3, 0.5)
weight @w : f32[4, 2] role=param = slice(@w, axis=1, start=0, stop=6, step=3)
weight @norm : f16[64] role=param = splat 1
weight @codes : u4[5] = [0, 1, 7, 8, 15]
weight @scalar : i64[] = -7
alias @tied = @w

graph(%x : f32[3, 4]) {
  %w = weight @w
  %y = matmul(%x, %w) : f32[3, 2]
  return %y
}
