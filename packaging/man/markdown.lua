-- Pandoc filter: pages of docs/ become one page of section 5, in the man(7) macros that groff and mandoc both know.
--
-- The first page of several is the body of the manual page: its title becomes DESCRIPTION, and its parts become sections.
-- The titles of the pages after it become sections. Tables become tagged paragraphs, because a terminal is too narrow for
-- tables; code becomes bold, because a terminal has one font.
--
-- Metadata: `name` and `summary` for NAME, `also` for SEE ALSO.

-- The manual page that contains each page of docs/.
local IN_PAGE = {
  ruleset = 'policyd-rules(5)',
  ['dns-lists'] = 'policyd-rules(5)',
  memory = 'policyd-rules(5)',
  owners = 'policyd-rules(5)',
  lists = 'policyd-rules(5)',
  settings = 'policyd.yaml(5)',
  tools = 'policyd(8)',
}

-- Text as roff takes it, for a line that is not filled. A line may not begin with a control character.
local function verbatim(text)
  local escaped = text:gsub('\\', '\\e'):gsub('-', '\\-'):gsub("'", '\\(aq'):gsub('`', '\\(ga'):gsub('%^', '\\(ha'):gsub('~', '\\(ti')
  local lines = {}
  for line in (escaped .. '\n'):gmatch('(.-)\n') do
    if line:find('^[.]') then
      line = '\\&' .. line
    end
    -- An empty line becomes roff's request for an empty line, because mandoc warns of empty lines.
    table.insert(lines, line == '' and '.sp' or line)
  end
  return table.concat(lines, '\n')
end

local function code_block(block)
  return pandoc.RawBlock('man', '.RS 4\n.EX\n' .. verbatim(block.text) .. '\n.EE\n.RE')
end

local function code(inline)
  return pandoc.Strong({ pandoc.Str(inline.text) })
end

-- The manual page that is being written, as in IN_PAGE.
local this_page

-- A link to a section of another manual page names that page.
local function link(inline)
  local page = IN_PAGE[inline.target:match('([%w-]+)%.md') or '']
  local text = pandoc.utils.stringify(inline.content)
  if text:find('%.md$') then
    return page == this_page and pandoc.Str('this page') or pandoc.Str(page or text)
  end
  local content = pandoc.List(inline.content)
  if page and page ~= this_page then
    content:extend({ pandoc.Space(), pandoc.Str('(' .. page .. ')') })
  end
  return content
end

-- Maximum characters of a first cell that becomes the tag of a paragraph.
local LONGEST_TAG = 60

-- Each row becomes a term and its definition. The term is the first cell. The definition is the second cell or, in a wider
-- table, a line for each further cell with the head of its column. If a first cell is too long for a tag, the cells of
-- all rows become paragraphs.
local function definitions(block)
  local simple = pandoc.utils.to_simple_table(block)
  local items, paragraphs, longest = {}, {}, 0
  for _, row in ipairs(simple.rows) do
    local body = {}
    for column = 2, #row do
      local cell = pandoc.utils.blocks_to_inlines(row[column])
      if #cell > 0 then
        local head = pandoc.utils.stringify(simple.headers[column])
        if #body > 0 then
          table.insert(body, pandoc.RawInline('man', '\n.br\n'))
        end
        if #row > 2 and head ~= '' then
          table.insert(body, pandoc.Str(head .. ':'))
          table.insert(body, pandoc.Space())
        end
        for _, inline in ipairs(cell) do
          table.insert(body, inline)
        end
      end
    end
    local term = pandoc.utils.blocks_to_inlines(row[1])
    longest = math.max(longest, #pandoc.utils.stringify(term))
    table.insert(items, { term, { { pandoc.Plain(body) } } })
    table.insert(paragraphs, pandoc.Para(term))
    table.insert(paragraphs, pandoc.BlockQuote({ pandoc.Plain(body) }))
  end
  return longest <= LONGEST_TAG and pandoc.DefinitionList(items) or paragraphs
end

-- Whether a list is a table of contents: each item is only a link to a section of the same page.
local function is_contents(block)
  for _, item in ipairs(block.content) do
    local first = item[1] and item[1].content and item[1].content[1]
    if not (first and first.t == 'Link' and first.target:sub(1, 1) == '#' and #item[1].content == 1) then
      return false
    end
  end
  return true
end

local function upper(inlines)
  return pandoc.walk_inline(pandoc.Span(inlines), {
    Str = function(inline)
      return pandoc.Str(pandoc.text and pandoc.text.upper(inline.text) or inline.text:upper())
    end,
  }).content
end

-- A value of the command line's --metadata.
local function text_of(value)
  return pandoc.utils.stringify(value)
end

local function sections(doc)
  local titles = 0
  local blocks = { pandoc.Header(1, { pandoc.Str('NAME') }), pandoc.RawBlock('man', verbatim(text_of(doc.meta.name)) .. ' \\- ' .. text_of(doc.meta.summary)) }
  for _, block in ipairs(doc.blocks) do
    if block.t == 'Header' then
      local level = block.level
      if level == 1 then
        titles = titles + 1
      elseif titles == 1 then
        level = level - 1
      end
      local content = block.content
      if block.level == 1 and titles == 1 then
        content = { pandoc.Str('DESCRIPTION') }
      elseif level == 1 then
        content = upper(content)
      end
      block = pandoc.Header(math.min(level, 2), content)
    end
    -- A heading already begins a paragraph.
    if blocks[#blocks].t == 'Header' then
      block = block.t == 'Para' and pandoc.Plain(block.content) or block
    elseif block.t == 'RawBlock' then
      block.text = '.PP\n' .. block.text
    end
    table.insert(blocks, block)
  end
  table.insert(blocks, pandoc.Header(1, { pandoc.Str('SEE'), pandoc.Space(), pandoc.Str('ALSO') }))
  table.insert(blocks, pandoc.Plain({ pandoc.Str(text_of(doc.meta.also)) }))
  return pandoc.Pandoc(blocks, doc.meta)
end

local function remember_page(meta)
  this_page = text_of(meta.name) .. '(5)'
end

return {
  { Meta = remember_page },
  { BulletList = function(block) return is_contents(block) and {} or nil end },
  { Link = link, Image = function() return {} end },
  { Table = definitions },
  { Code = code, CodeBlock = code_block },
  { Pandoc = sections },
}
