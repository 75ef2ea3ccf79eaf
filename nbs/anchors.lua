-- The anchor of a heading is its text with - for blanks in Jupyter and on GitHub, and pandoc's identifier on the site:
-- `05_model.ipynb#Accuracy,-and-why` leads to `#accuracy-and-why` there.
function Link(link)
  local page, anchor = link.target:match('^([^#:]*)#(.+)$')
  if anchor then
    link.target = page .. '#' .. pandoc.text.lower(anchor):gsub('[^%w%-_.]', ''):gsub('^%A+', '')
    return link
  end
end
